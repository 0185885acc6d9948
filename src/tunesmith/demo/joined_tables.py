"""Kinds of question that need a join of two, three or four tables.

The aliases are the same throughout: c customers, p products, o orders, i items, pay payments, r reviews.
"""

from tunesmith.demo.kind import Kind

_ONE_HOP = (
    Kind(
        "orders_of_customer",
        "SELECT o.id, o.date FROM orders o JOIN customers c ON o.customer_id = c.id WHERE c.name = '{customer}'",
        train=(
            "Which orders did {customer} place, and when?",
            "List id and date of the orders of {customer}.",
            "Show all orders by {customer} with their dates.",
            "Give me the id and date of every order placed by {customer}.",
        ),
        test=(
            "What has {customer} ordered so far? Return order ids and dates.",
            "For {customer}, look up each order id together with its date.",
        ),
    ),
    Kind(
        "orders_from_city",
        "SELECT COUNT(*) FROM orders o JOIN customers c ON o.customer_id = c.id "
        "WHERE c.city = '{city}' AND o.status = '{status}'",
        train=(
            "How many orders of customers from {city} are {status}?",
            "Count the {status} orders from {city}.",
            "What is the number of {status} orders by customers in {city}?",
            "How many {status} orders did customers living in {city} place?",
        ),
        test=(
            "Tell me how many orders that came from {city} are {status}.",
            "Customers in {city}: how many of their orders have the status {status}?",
        ),
    ),
    Kind(
        "products_in_order",
        "SELECT p.name, i.quantity FROM items i JOIN products p ON i.product_id = p.id WHERE i.order_id = {order}",
        train=(
            "Which products are in order {order}, and how many of each?",
            "List product name and quantity for order {order}.",
            "What was bought in order {order}? Show names and quantities.",
            "Show the items of order {order} with product name and quantity.",
        ),
        test=(
            "Open order {order} and give me each product with its quantity.",
            "What products, in what quantity, does order {order} contain?",
        ),
    ),
    Kind(
        "units_of_product",
        "SELECT SUM(i.quantity) FROM items i JOIN products p ON i.product_id = p.id WHERE p.name = '{product}'",
        train=(
            "How many units of {product} were sold?",
            "What is the total quantity ordered of {product}?",
            "Sum the quantities of {product} over all orders.",
            "How many pieces of {product} have been ordered in total?",
        ),
        test=(
            "Total up how often {product} was sold, counting quantities.",
            "Over all orders, what quantity of {product} did we sell?",
        ),
    ),
    Kind(
        "stars_of_product",
        "SELECT AVG(r.stars) FROM reviews r JOIN products p ON r.product_id = p.id WHERE p.name = '{product}'",
        train=(
            "What is the average rating of {product}?",
            "How many stars does {product} get on average?",
            "Give me the average stars in the reviews of {product}.",
            "Show the mean star rating for {product}.",
        ),
        test=(
            "On average, how well is {product} reviewed in stars?",
            "Tell me the average number of stars reviewers gave {product}.",
        ),
    ),
    Kind(
        "products_with_stars",
        "SELECT DISTINCT p.name FROM products p JOIN reviews r ON r.product_id = p.id "
        "WHERE p.category = '{category}' AND r.stars = {stars}",
        train=(
            "Which products in {category} have a {stars}-star review?",
            "List the {category} products with any {stars}-star rating.",
            "Show products of the category {category} that got a {stars}-star review at least once.",
            "What {category} products were rated {stars} out of 5 by someone?",
        ),
        test=(
            "Name all products from {category} that someone gave {stars} stars.",
            "In {category}, what has at least one review of {stars} stars?",
        ),
    ),
    Kind(
        "orders_per_customer",
        "SELECT c.name, COUNT(*) FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' GROUP BY c.id",
        train=(
            "How many orders did each customer from {city} place?",
            "Count the orders per customer in {city}.",
            "Show the customers from {city} who ordered, with their number of orders.",
            "For every customer in {city} with orders, give name and order count.",
        ),
        test=(
            "Customer by customer, how many orders came out of {city}?",
            "List who ordered from {city} and how many orders each of them made.",
        ),
    ),
    Kind(
        "frequent_customers",
        "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' GROUP BY c.id HAVING COUNT(*) > {count}",
        train=(
            "Which customers from {city} placed more than {count} orders?",
            "List the customers in {city} with more than {count} orders.",
            "Who in {city} has ordered more than {count} times?",
            "Show customers living in {city} whose number of orders is above {count}.",
        ),
        test=(
            "Name the people from {city} behind more than {count} orders each.",
            "Looking at {city}, which customers ordered over {count} times?",
        ),
    ),
    Kind(
        "best_sellers",
        "SELECT p.name FROM products p JOIN items i ON i.product_id = p.id "
        "WHERE p.category = '{category}' GROUP BY p.id ORDER BY SUM(i.quantity) DESC LIMIT {top}",
        train=(
            "What are the {top} best-selling products in {category} by quantity?",
            "List the {top} products of {category} with the highest quantity sold.",
            "Which {top} {category} products sold the most units?",
            "Show the top {top} sellers in {category} by units sold.",
        ),
        test=(
            "Rank {category} by units sold and give the first {top} products.",
            "Name the {top} {category} products of which we sold the largest quantity.",
        ),
    ),
)

_MORE_HOPS = (
    Kind(
        "revenue_of_category",
        "SELECT SUM(i.quantity * p.price) FROM orders o JOIN items i ON i.order_id = o.id "
        "JOIN products p ON i.product_id = p.id WHERE p.category = '{category}' AND o.date LIKE '{year}%'",
        train=(
            "What was the revenue of {category} in {year}?",
            "How much money did {category} products make in {year}?",
            "Compute quantity times price over all {category} items ordered in {year}.",
            "Give me the total sales value of {category} for {year}.",
        ),
        test=(
            "In {year}, what sum did we turn over with {category}?",
            "Tell me the turnover from {category} products ordered in {year}.",
        ),
    ),
    Kind(
        "paid_by_city",
        "SELECT SUM(pay.amount) FROM payments pay JOIN orders o ON pay.order_id = o.id "
        "JOIN customers c ON o.customer_id = c.id WHERE pay.method = '{method}' AND c.city = '{city}'",
        train=(
            "How much did customers from {city} pay by {method}?",
            "What is the total amount of {method} payments from {city}?",
            "Sum the {method} payments of customers in {city}.",
            "How much money came from {city} with the payment method {method}?",
        ),
        test=(
            "Add up what people living in {city} paid using {method}.",
            "Customers in {city}: what total did they pay via {method}?",
        ),
    ),
    Kind(
        "cities_of_product",
        "SELECT DISTINCT c.city FROM customers c JOIN orders o ON o.customer_id = c.id "
        "JOIN items i ON i.order_id = o.id JOIN products p ON i.product_id = p.id WHERE p.name = '{product}'",
        train=(
            "From which cities was {product} ordered?",
            "List the different cities of customers who bought {product}.",
            "In which cities do buyers of {product} live?",
            "Show every city where a customer ordered {product}, each once.",
        ),
        test=(
            "Name the cities, without repeats, that {product} was sold to.",
            "Where do the customers who ordered {product} come from?",
        ),
    ),
    Kind(
        "top_payers",
        "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id "
        "JOIN payments pay ON pay.order_id = o.id WHERE c.city = '{city}' "
        "GROUP BY c.id ORDER BY SUM(pay.amount) DESC LIMIT {top}",
        train=(
            "Which {top} customers from {city} paid the most in total?",
            "List the {top} customers in {city} with the highest total payments.",
            "Who are the top {top} customers of {city} by amount paid?",
            "Show the {top} biggest spenders from {city} by total payments.",
        ),
        test=(
            "Rank the customers of {city} by all they have paid and give the first {top}.",
            "Name the {top} people in {city} whose payments add up to the most.",
        ),
    ),
)

KINDS = (*_ONE_HOP, *_MORE_HOPS)
