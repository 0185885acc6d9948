"""Templates on one table: filters, ranges, aggregates, groups, rankings."""

from tunesmith.demo.query_template import QueryTemplate

TEMPLATES = (
    # Filters
    QueryTemplate("customers_in_city", "SELECT name FROM customers WHERE city = '{city}'", train=(
        "Which customers live in {city}?",
        "List the names of all customers from {city}.",
        "Who are our customers in {city}?",
        "Give me the name of every customer based in {city}.",
        "Show the customers whose city is {city}.",
        "Name everyone in {city} who is a customer of ours.",
    ), test=(
        "I need the names of the customers living in {city}.",
        "Whom do we count as customers in {city}?",
        "From {city}, who is on our list of customers?",
        "Look up everybody who is a customer of ours and lives in {city}.",
    )),
    QueryTemplate("customers_in_two_cities", "SELECT name FROM customers WHERE city IN ('{city}', '{city2}')", train=(
        "Which customers live in {city} or {city2}?",
        "List the names of customers from {city} and {city2}.",
        "Who are our customers in either {city} or {city2}?",
        "Show all customers whose city is {city} or {city2}.",
        "Name the customers based in one of the cities {city} and {city2}.",
        "I need all customers who live in {city} or {city2}.",
    ), test=(
        "I need the names of everyone from {city} or {city2}.",
        "Of our customers, who is at home in {city} or in {city2}?",
        "Look up everybody whose city is either {city} or {city2}.",
        "In {city} and {city2}, what are the names of our customers?",
    )),
    QueryTemplate("customers_joined_after", (
        "SELECT name FROM customers WHERE city = '{city}' AND joined > '{date}'"
    ), train=(
        "Which customers from {city} joined after {date}?",
        "List the names of customers in {city} who joined later than {date}.",
        "Who joined after {date} and lives in {city}?",
        "Give me the {city} customers with a joining date after {date}.",
        "Name the people from {city} who became customers after {date}.",
    ), test=(
        "After {date}, which customers joined in {city}?",
        "Later than {date}, who joined us from {city}?",
        "I need the names of {city} customers whose joining date is later than {date}.",
        "Of all customers in {city}, name those that joined after {date}.",
    )),
    QueryTemplate("products_by_price", "SELECT name FROM products WHERE price {compare} {price}", train=(
        "Which products are {compare} {price} euros?",
        "List the names of products that are {compare} {price}.",
        "Show every product {compare} {price} euros.",
        "Give me all products which are {compare} {price}.",
        "Which articles are {compare} {price} euros?",
    ), test=(
        "Name each product that is {compare} {price}.",
        "What do we sell that is {compare} {price} euros?",
        "I need the names of everything that is {compare} {price} euros.",
        "Of our products, which ones are {compare} {price}?",
    )),
    QueryTemplate("products_in_price_range", (
        "SELECT name FROM products WHERE category = '{category}' AND price BETWEEN {price} AND {price2}"
    ), train=(
        "Which products in {category} cost between {price} and {price2}?",
        "List the {category} products priced from {price} to {price2} euros.",
        "Show products of the category {category} with a price between {price} and {price2} euros.",
        "What can I buy in {category} for {price} to {price2} euros?",
        "Name the {category} products whose price lies between {price} and {price2}.",
    ), test=(
        "With {price} to {price2} euros to spend, which products of {category} are there?",
        "Between {price} and {price2} euros, what does {category} offer?",
        "I need the {category} products whose price is from {price} to {price2}.",
        "Of everything in {category}, pick what costs {price} to {price2} euros.",
    )),
    QueryTemplate("products_with_word", "SELECT name, price FROM products WHERE name LIKE '%{word}%'", train=(
        'Which products have "{word}" in their name, and what do they cost?',
        'List name and price of the products whose name contains "{word}".',
        'Show the products with a name containing "{word}" and their prices.',
        'Find products called something with "{word}"; give name and price.',
        'Search for "{word}" among the product names; I need name and price.',
        'What products have a name with "{word}" in it, and what is their price?',
    ), test=(
        'Search the product names for "{word}" and return name and price.',
        'What products mention "{word}" in the name, and at which price?',
        'Of our products, which names include "{word}", and at what price?',
        'I need name and price of everything that has "{word}" in its name.',
    )),
    # Counts
    QueryTemplate("buyers_in_month", (
        "SELECT COUNT(DISTINCT customer_id) FROM orders WHERE date LIKE '{month}%'"
    ), train=(
        "How many different customers ordered in {month}?",
        "Count the distinct customers with an order in {month}.",
        "How many customers placed at least one order in {month}?",
        "What is the number of different customers who ordered in {month}?",
        "In {month}, how many separate customers bought from us?",
        "Tell me how many different people placed orders in {month}.",
    ), test=(
        "Counting everybody once, how many customers ordered in {month}?",
        "By how many different customers were the orders of {month} placed?",
        "I need the number of distinct customers behind the orders of {month}.",
        "During {month}, how many different people were there who ordered?",
    )),
    QueryTemplate("price_of_category", "SELECT {aggregate}(price) FROM products WHERE category = '{category}'", train=(
        "What is the {aggregate} price in {category}?",
        "Give me the {aggregate} price of the {category} products.",
        "Find the {aggregate} price among products of the category {category}.",
        "Show the {aggregate} product price for {category}.",
        "For {category}, tell me the {aggregate} price.",
    ), test=(
        "Looking at {category} only, what is the {aggregate} price of a product?",
        "Among all {category} products, what is the {aggregate} price?",
        "Of everything in {category}, work out the {aggregate} price.",
        "What {aggregate} price do the products of {category} have?",
    )),
    # Groups
    QueryTemplate("orders_per_status", (
        "SELECT status, COUNT(*) FROM orders WHERE date LIKE '{month}%' GROUP BY status"
    ), train=(
        "How many orders of each status were placed in {month}?",
        "Count the orders of {month} per status.",
        "For {month}, show each order status with its number of orders.",
        "Give me the number of orders by status in {month}.",
        "Break the orders of {month} down by status.",
    ), test=(
        "In {month}, how many orders were there for every status?",
        "Group the orders placed in {month} by status and count them.",
        "I need each status along with the count of its orders from {month}.",
        "Per status, how many orders did {month} bring?",
    )),
    QueryTemplate("stock_per_category", (
        "SELECT category, SUM(stock) FROM products WHERE price {compare} {price} GROUP BY category"
    ), train=(
        "What is the total stock per category of products {compare} {price} euros?",
        "For each category, sum the stock of the products {compare} {price}.",
        "Show every category with its total stock of products {compare} {price} euros.",
        "How much stock does each category have in products {compare} {price}?",
        "Counting only products {compare} {price} euros, what stock does every category hold?",
    ), test=(
        "Add up the stock by category for products {compare} {price}.",
        "Per category, how much do we stock of products {compare} {price} euros?",
        "I need each category with the summed stock of its products {compare} {price}.",
        "What stock has each category, if only products {compare} {price} count?",
    )),
    QueryTemplate("cities_by_customers", (
        "SELECT city FROM customers GROUP BY city HAVING COUNT(*) {than} {size}"
    ), train=(
        "Which cities have {than} {size} customers?",
        "List the cities with {than} {size} customers.",
        "In which cities do {than} {size} customers live?",
        "Show each city that has {than} {size} customers.",
        "Name the cities where we count {than} {size} customers.",
    ), test=(
        "Where do {than} {size} customers live? Return the cities.",
        "What cities are home to {than} {size} of our customers?",
        "Of all cities, name those in which {than} {size} customers live.",
        "I need every city that comes to {than} {size} customers.",
    )),
    # Rankings
    QueryTemplate("products_ranked", (
        "SELECT name FROM products WHERE category = '{category}' ORDER BY {rank} LIMIT {top}"
    ), train=(
        "What are the {top} {rank} products in {category}?",
        "List the {top} {rank} products of the category {category}.",
        "Show me the {top} {rank} {category} products.",
        "Which {top} products in {category} are the {rank}?",
        "Give the names of the {top} {rank} articles that {category} offers.",
    ), test=(
        "From {category}, pick the {top} {rank} products.",
        "I need the names of the {top} {rank} things we sell in {category}.",
        "Of all {category} products, which {top} are the {rank}?",
        "Within {category}, find the {top} {rank} products.",
    )),
)  # fmt: skip
